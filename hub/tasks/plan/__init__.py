"""The verb `plan`: memory, layout, time and price of a run before it runs."""
