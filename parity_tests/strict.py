"""The type checker of the tests."""

from beartype import BeartypeConf, beartype

# an int where a float is asked for is fine, as PEP 484 says and as the configs allow
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
