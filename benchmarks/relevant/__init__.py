"""What relevance is measured on: models, needs, and which serves which, written down."""
