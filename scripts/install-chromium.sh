#!/bin/sh
# Installs the Chromium that the page tests drive, on Debian and its relatives. Does nothing where there is one.
set -e
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then exit 0; fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium
