"""What a run to resume has to have in common with the saved one."""
