"""What was decided and measured: traces, plans, schedules and calibrations."""
