"""The verb `evaluate`: measures finished models, and what training changed, with intervals."""
