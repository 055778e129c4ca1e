"""What is lost when processes are killed, disks fill, files are damaged and inputs are hostile."""
