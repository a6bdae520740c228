"""What a trained generator is used for: images, walks, mixed styles, projections, attention."""
