"""Studies: many trainings that differ in one thing at a time, run side by side, resumed, compared and written up."""
