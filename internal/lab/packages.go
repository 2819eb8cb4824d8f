package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// packagesTimeout is how long a host's systemd may take to its default target,
// and dpkg after that.
const packagesTimeout = 60 * time.Second

// installPackages installs the Packages in every host, before its daemons may
// start.
func (u *up) installPackages(ctx context.Context) error {
	if len(u.Packages) == 0 {
		return nil
	}
	err := u.eachHost(func(name string) error {
		ctx, cancel := context.WithTimeout(ctx, packagesTimeout)
		defer cancel()
		if err := u.client.retry(ctx, name, "systemctl", "is-active", "-q", "multi-user.target"); err != nil {
			return fmt.Errorf("systemd of host %s: %w", name, err)
		}
		// The host's /etc says what it is made of; its database is empty.
		if _, err := u.client.Exec(ctx, name, "sh", "-c", "mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers && touch /var/lib/dpkg/status"); err != nil {
			return err
		}
		return u.client.Install(ctx, name, u.Packages...)
	})
	if err == nil {
		u.say("packages are installed in all hosts")
	}
	return err
}

// Install has dpkg install deb files of this machine in a host of a lab that
// was brought up with Packages: for the first time, or as an upgrade.
func (c *Client) Install(ctx context.Context, host string, packages ...string) error {
	argv := []string{"dpkg", "--install"}
	for _, p := range packages {
		b, err := os.ReadFile(p)
		if err == nil {
			err = os.WriteFile(filepath.Join(c.layout.HostVar(host), "tmp", filepath.Base(p)), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("bring a package to host %s: %w", host, err)
		}
		argv = append(argv, filepath.Join("/var/tmp", filepath.Base(p)))
	}
	_, err := c.Exec(ctx, host, argv...)
	return err
}
