"""From images to numbers that can be trusted: features, metrics, protocols, records."""
