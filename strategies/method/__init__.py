"""Training methods: recipes, round plans, learning-rate schedules, local epochs."""
