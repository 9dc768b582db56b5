"""`unet_plan` says what a training run would need and take on chips that are not here.

`chips` is the table of their facts, `topology` reads the name of a group of them, `compiler` gets
their own compiler, `program` reads what it compiled, `plan` puts a plan together, `largest` finds
the largest batch that fits, `table` and `page` show plans.
"""
