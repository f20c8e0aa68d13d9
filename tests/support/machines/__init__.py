"""Machines that boot, the instance on them, and systemd's side of the notify socket."""
