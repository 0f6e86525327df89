"""`zoo plan`: compile a job for devices that are not here, and predict its memory, time and communication.

    find_run -> compile_program -> hlo_parser, collectives, flops_and_bytes -> roofline -> plan_text, plan_page
    a run       compiled           parsed and counted                          bounded     shown

`plan_record` holds the result, `plan_cache` stores it, `target_devices` lists the devices, `mesh_search` tries meshes, and
`plan_command` runs `zoo plan`.
"""
