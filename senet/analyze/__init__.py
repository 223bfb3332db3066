"""What the paper looks into in sections 4 and 7: what SE blocks do in a trained net."""
