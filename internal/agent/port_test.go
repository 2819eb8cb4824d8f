package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/firewall"
)

func TestClosePort(t *testing.T) {
	var applied firewall.Rules
	broken, found := error(nil), []firewall.Finding(nil)
	daemon, refused := false, error(nil)
	f := &Firewall{
		Apply:  func(r firewall.Rules) error { applied = r; return broken },
		Check:  func(firewall.Rules) ([]firewall.Finding, error) { return found, nil },
		Remove: func() error { return nil },
		Admit:  func(context.Context, firewall.Rules) (bool, error) { return daemon, refused },
	}
	c, err := config.Parse([]byte(strings.ReplaceAll(clusterYAML, "%DIR%", "")))
	if err != nil {
		t.Fatal(err)
	}
	rules := PortRules(c)
	want := []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	if got := closePort(t.Context(), f, rules); len(got) != 0 || applied.Port != 8182 || !slices.Equal(applied.Members, want) {
		t.Errorf("%v, applied %v", got, applied)
	}
	c.HA.Enabled = false
	if off := PortRules(c); rules.Closed || !off.Closed || off.Control != 8183 || rules.Control != 8183 {
		t.Errorf("with HA on %+v, off %+v: want it closed while HA is off, and the control port looked after", rules, off)
	}
	broken = errors.New("protocol not supported")
	found = []firewall.Finding{{Chain: "inet filter input", Certain: true, Member: want[1], Remedy: "nft insert rule ..."}}
	got := fmt.Sprint(closePort(t.Context(), f, rules))
	for _, part := range []string{"port 8182 is not closed to strangers", "protocol not supported", "chain inet filter input drops what 10.0.0.2", "run: nft insert rule"} {
		if !strings.Contains(got, part) {
			t.Errorf("notices %s lack %q", got, part)
		}
	}
	broken, daemon, found = nil, true, []firewall.Finding{{Chain: "inet firewalld filter_INPUT", Member: want[1], Remedy: "firewall-cmd ..."}}
	if got := closePort(t.Context(), f, rules); len(got) != 0 {
		t.Errorf("firewalld admits the members: %v", got)
	}
	refused = errors.New("not authorised")
	got = fmt.Sprint(closePort(t.Context(), f, rules))
	for _, part := range []string{"firewalld was not made to admit the members: not authorised", "inet firewalld filter_INPUT may drop", "run: firewall-cmd"} {
		if !strings.Contains(got, part) {
			t.Errorf("notices %s lack %q", got, part)
		}
	}
}
