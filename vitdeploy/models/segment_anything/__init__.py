"""Segment Anything models as exportable parts: an image encoder and a mask decoder.

transformers (SAM, SAM 2) and timm (MobileSAM's TinyViT) do the modelling. Here live the forms of
these modules that export well, the publisher's checkpoint layouts, and how weights get in. The
short names and which file means which model are in `families`.
"""
