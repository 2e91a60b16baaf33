"""The processes of one run: who they are, how they are started, what they tell each other."""
