"""What runs on the far side of an ssh connection: Python 3.8, its standard library, an engine.

Nothing of it is installed there: `remote.session` sends the text of these modules down the
connection and they run from memory. numpy and an engine (onnxruntime, openvino) are imported
where they are needed, so that a missing one is one clear answer.
"""
