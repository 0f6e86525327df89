"""`zoo plan`: a job compiled for devices that are not here, and what its program says of memory, time and communication.

    subject -> program -> hlo, collectives, work -> roofline -> show, page
    a run      compiled   read                      judged      shown

`facts` has all that a plan says, `kept` keeps it, `targets` says what devices there are, `search` tries meshes, `main` is what
the command calls.
"""
