package host

import _ "embed"

// systemctl stands in for the real one in hosts that are installed from
// packages: what the packages' scripts call of it acts on the services of init.
//
//go:embed systemctl.sh
var systemctl []byte
