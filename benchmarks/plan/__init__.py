"""`zoo plan`: compile a job for devices that are not here, and predict its memory, time and communication.

    find_run -> compile_program -> hlo, collectives, flops_and_bytes -> roofline -> text_view, page
    a run          compiled           parsed and counted                   bounded     shown

`plan_record` holds the result, `cache` stores it, `targets` lists the devices, `mesh_search` tries meshes, and the command calls
`main`.
"""
