"""What surrounds a process: entry and exit, child processes, devices, threads and checks of the machine."""
