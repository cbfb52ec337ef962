"""What everything else uses: errors, seeds, files, the log, fault points."""
