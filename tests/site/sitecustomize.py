"""First thing in every process of the tests that start chiasm as a program: the family `fake`."""

import fake_encoder

fake_encoder.register()
