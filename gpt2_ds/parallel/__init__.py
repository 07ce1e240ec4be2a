"""How training is spread over devices. The only package that imports deepspeed."""
