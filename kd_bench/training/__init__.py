"""Trains cohorts: students side by side on one stream of batches, with or without a teacher."""
