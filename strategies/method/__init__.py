"""What a round trains: recipes, round plans, learning-rate schedules, local epochs."""
