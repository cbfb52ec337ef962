"""What every part uses: configuration files, ``module:function`` references, cores."""
