"""First thing in every process of the tests that start chiasm as a program: the family `fake`, and
where SMALL_RAY is set a Ray of few processes."""

import os

import fake_encoder

fake_encoder.register()
if os.environ.get("SMALL_RAY"):
    from small_ray import start_small

    start_small()
