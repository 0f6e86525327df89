"""Building blocks of the models: layers, the scan over layers, the key-value cache, task heads.

XLNet's two streams of queries are in `xlnet_layer`; its memory of earlier rows is in `zoo.models.xlnet`.
"""
