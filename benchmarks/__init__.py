"""How fast the operators are, against plain eager torch, torch.compile and the packages that people use instead.

``python -m benchmarks.run`` measures, ``python -m benchmarks.check`` holds the wanted ratios, ``python -m
benchmarks.plot`` and ``python -m benchmarks.readme`` draw and print what the committed csv files hold. See README.md
beside this file.
"""
