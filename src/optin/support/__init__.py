"""What every folder uses: files, progress, versions."""
