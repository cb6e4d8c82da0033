"""What runs on the device: `build.py` in small modules, standard library and `tensorrt` only.

`assemble.build_script` joins these modules into the one file that a package ships, so they keep
to Python 3.8, import each other by name (`from .x import y`), and share one name space. How a
package is written is not here (see `package`).
"""
