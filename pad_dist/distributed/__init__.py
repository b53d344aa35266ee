"""Processes that work together: the distributed context, preemption, the watchdog and local launches."""
