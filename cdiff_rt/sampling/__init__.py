"""The loop and its numbers: schedules, solvers, noise, fusion."""
