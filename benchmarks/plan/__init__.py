"""`zoo plan`: a job compiled for devices that are not here, and what its program says of memory, time and communication.

    subject -> program -> hlo -> roofline -> report
    a run      compiled   read   judged      shown

`targets` says what devices there are, `search` tries meshes.
"""
