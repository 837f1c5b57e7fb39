# SPDX-License-Identifier: ISC
"""What the tests in Python share: TAP, and real servers as fixtures. Standard library only.

A test starts with `from support import tap` (PYTHONPATH is tests/, set by `make check`) and ends with
`tap.main()`. By hand: cd BUILD && PYTHONPATH=SRC/tests python3 SRC/tests/.../test_x.py [Class[.test]..]
"""
