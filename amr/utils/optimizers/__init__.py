"""The main optimizer: groups of parameters, schedules that follow the run's length, and how both are made."""
