package work

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/model"
	"hanok.dev/hanok/internal/server/state"
)

// Bounds of a question.
const (
	considerLimit = 10 * time.Second
	// mostAsked is how many hosts are asked until one answers.
	mostAsked = 3
)

// Ask asks a primary what it would say, on any server: the one last known first,
// then others, who relay the question.
func Ask(cache *state.Cache, dial Dial) func(ctx context.Context, cluster string, what fdm.Consideration) (fdm.AdminReply, error) {
	if dial == nil {
		return nil
	}
	return func(ctx context.Context, cluster string, what fdm.Consideration) (fdm.AdminReply, error) {
		w := cache.Wanted(cluster)
		if w == nil {
			return fdm.AdminReply{}, fmt.Errorf("cluster %s is not known", cluster)
		}
		var hosts []model.HostID
		if c := cache.Account(cluster); c != nil && c.Primary != "" && c.Unreachable == "" {
			hosts = append(hosts, model.HostID(c.Primary))
		}
		for i := range w.Cluster.Hosts {
			if h := w.Cluster.Hosts[i].Name; !slices.Contains(hosts, h) {
				hosts = append(hosts, h)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, considerLimit)
		defer cancel()
		err := errors.New("the cluster has no hosts")
		for _, h := range hosts[:min(len(hosts), mostAsked)] {
			var r fdm.AdminReply
			if r, err = askHost(ctx, dial, w.Cluster, h, what); err == nil {
				return r, nil
			}
		}
		return fdm.AdminReply{}, err
	}
}

func askHost(ctx context.Context, dial Dial, c *config.Cluster, h model.HostID, what fdm.Consideration) (fdm.AdminReply, error) {
	a, err := dial(c, h)
	if err != nil {
		return fdm.AdminReply{}, err
	}
	defer a.Close()
	return a.Admin(ctx, fdm.AdminRequest{Consider: &what})
}
