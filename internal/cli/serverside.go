package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	hanokv1 "hanok.dev/hanok/api/gen/hanok/v1"
	"hanok.dev/hanok/internal/cli/screen"
	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/fdm"
	"hanok.dev/hanok/internal/i18n"
	"hanok.dev/hanok/internal/server/api"
)

// writeMessages writes messages of the API as a JSON list.
func writeMessages[M proto.Message](w io.Writer, list []M) error {
	out := make([]json.RawMessage, 0, len(list))
	for _, m := range list {
		b, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(m)
		if err != nil {
			return err
		}
		out = append(out, b)
	}
	return writeJSON(w, out)
}

// listing is a command that shows a list of the server's.
func listing[M proto.Message](a *app, use, short string, header []string, get func(context.Context, *apiClient, string) ([]M, error), row func(M) []string) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs}
	out := outputFlag(cmd)
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		js, err := asJSON(*out)
		if err != nil {
			return err
		}
		s, err := a.api()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(c.Context(), askLimit)
		defer cancel()
		list, err := get(ctx, s, s.login.Cluster)
		if err != nil {
			return err
		}
		w := c.OutOrStdout()
		if js {
			return writeMessages(w, list)
		}
		t := &table{header: header}
		for _, m := range list {
			t.add(row(m)...)
		}
		t.write(w, painterFor(w))
		return nil
	}
	return cmd
}

// newest collects the pages of a list that begins with the newest, until there are
// as many as asked for.
func newest[M any](number int32, get func(size int32, token string) ([]M, string, error)) ([]M, error) {
	if number < 1 {
		return nil, usage("give a number from 1", "-n %d shows nothing", number)
	}
	var out []M
	token := ""
	for {
		list, next, err := get(min(number-int32(len(out)), api.MaxPage), token)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
		if token = next; token == "" || len(out) >= int(number) {
			return out, nil
		}
	}
}

// pages collects all pages of a list.
func pages[M any](get func(token string) ([]M, string, error)) ([]M, error) {
	var out []M
	token := ""
	for {
		list, next, err := get(token)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
		if token = next; token == "" {
			return out, nil
		}
	}
}

func newClusterList(a *app) *cobra.Command {
	return listing(a, "list", "List the clusters that the server knows", []string{"CLUSTER", "PRIMARY", "HA", "VERSION", "WANTED", "HOSTS", "VMS", "PROTECTED", "DRIFT"},
		func(ctx context.Context, s *apiClient, _ string) ([]*hanokv1.Cluster, error) {
			return pages(func(token string) ([]*hanokv1.Cluster, string, error) {
				r, err := s.inventory.ListClusters(ctx, &hanokv1.ListClustersRequest{PageToken: token})
				return r.GetClusters(), r.GetNextPageToken(), err
			})
		}, func(c *hanokv1.Cluster) []string {
			drift := "-"
			if c.Drift != nil {
				drift = c.Drift.Text
			}
			return []string{c.Name, dash(c.Primary), screen.YesNo(c.Ha), fmt.Sprint(c.ObservedVersion), fmt.Sprint(c.DesiredVersion), fmt.Sprintf("%d of %d", c.HostsOk, c.Hosts),
				fmt.Sprintf("%d of %d", c.VmsRunning, c.Vms), fmt.Sprint(c.VmsProtected), drift}
		})
}

// hostsOfServer are the host commands that ask a server.
func hostsOfServer(a *app) []*cobra.Command {
	list := listing(a, "list", "List the hosts (through a server)", []string{"CLUSTER", "HOST", "ROLE", "STATE", "ARMED", "VMS", "MEMORY USED", "VERSION", "REASON"},
		func(ctx context.Context, s *apiClient, cluster string) ([]*hanokv1.Host, error) {
			return pages(func(token string) ([]*hanokv1.Host, string, error) {
				r, err := s.inventory.ListHosts(ctx, &hanokv1.ListHostsRequest{Cluster: cluster, PageSize: 1000, PageToken: token})
				return r.GetHosts(), r.GetNextPageToken(), err
			})
		}, func(h *hanokv1.Host) []string {
			return []string{h.Cluster, h.Name, dash(h.Role), h.State, screen.YesNo(h.Armed), fmt.Sprint(h.Vms), fmt.Sprintf("%d of %d MiB", h.MemoryUsedMib, h.MemoryMib), fmt.Sprint(h.ConfigVersion), dash(h.Reason)}
		})
	m := &cobra.Command{Use: "maintenance HOST on|off", Short: "Put a host into maintenance mode, or out of it (through a server)", Args: cobra.ExactArgs(2)}
	var force bool
	forceFlag(m, &force)
	m.RunE = func(c *cobra.Command, args []string) error {
		if args[1] != "on" && args[1] != "off" {
			return usage("usage: "+c.UseLine(), "%q is neither on nor off", args[1])
		}
		s, err := a.api()
		if err != nil {
			return err
		}
		cluster, err := s.clusterName(c.Context())
		if err != nil {
			return err
		}
		r, err := s.operation.SetMaintenance(c.Context(), &hanokv1.SetMaintenanceRequest{Cluster: cluster, Host: args[0], On: args[1] == "on", Force: force})
		if err != nil {
			return err
		}
		return s.wait(c, r.Task)
	}
	return []*cobra.Command{list, m}
}

// wait shows a task's progress until it ends; nil is a task that was not needed.
func (s *apiClient) wait(c *cobra.Command, t *hanokv1.Task) error {
	if t == nil {
		i18n.Fprintln(c.OutOrStdout(), "nothing changes")
		return nil
	}
	stream, err := s.task.WatchTask(c.Context(), &hanokv1.WatchTaskRequest{Task: t.Id})
	if err != nil {
		return err
	}
	defer stream.Close()
	say := progress{w: c.ErrOrStderr()}
	for stream.Receive() {
		if t = stream.Msg().Task; t.State == hanokv1.TaskState_TASK_STATE_RUNNING {
			say.say("%s", t.Message)
		}
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if t.State != hanokv1.TaskState_TASK_STATE_SUCCEEDED {
		code := ExitRefused
		if strings.HasPrefix(t.Message, "not in time") {
			code = ExitTimeout
		}
		remedy := "hanok task list"
		if t.Refused {
			remedy = "do it all the same with --force"
		}
		return Fail(code, remedy, "task %s %s: %s", t.Id, stateWord(t.State), t.Message)
	}
	i18n.Fprintln(c.OutOrStdout(), t.Message)
	return nil
}

func stateWord(s hanokv1.TaskState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATE_"))
}

func newDatastoreList(a *app) *cobra.Command {
	return listing(a, "list", "List the datastores (through a server)", []string{"CLUSTER", "DATASTORE", "LIST OWNER", "TERM", "VMS", "FENCE", "PATH", "PROBLEM"},
		func(ctx context.Context, s *apiClient, cluster string) ([]*hanokv1.Datastore, error) {
			return pages(func(token string) ([]*hanokv1.Datastore, string, error) {
				r, err := s.inventory.ListDatastores(ctx, &hanokv1.ListDatastoresRequest{Cluster: cluster, PageToken: token})
				return r.GetDatastores(), r.GetNextPageToken(), err
			})
		}, func(d *hanokv1.Datastore) []string {
			return []string{d.Cluster, d.Name, dash(d.Owner), fmt.Sprint(d.Term), fmt.Sprint(d.Vms), d.Fence, d.Path, dash(d.Problem)}
		})
}

func newTask(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "task", Short: "Follow long operations (through a server)"}
	number := int32(100)
	list := listing(a, "list", "List the newest tasks", []string{"TASK", "KIND", "CLUSTER", "TARGET", "STATE", "DONE", "BY", "CREATED", "MESSAGE"},
		func(ctx context.Context, s *apiClient, cluster string) ([]*hanokv1.Task, error) {
			return newest(number, func(size int32, token string) ([]*hanokv1.Task, string, error) {
				r, err := s.task.ListTasks(ctx, &hanokv1.ListTasksRequest{Cluster: cluster, PageSize: size, PageToken: token})
				return r.GetTasks(), r.GetNextPageToken(), err
			})
		}, func(t *hanokv1.Task) []string {
			return []string{t.Id, t.Kind, dash(t.Cluster), dash(t.Target), stateWord(t.State), fmt.Sprintf("%d %%", t.Progress), t.Principal,
				t.Created.AsTime().Local().Format("2006-01-02 15:04:05"), t.Message}
		})
	list.Flags().Int32VarP(&number, "number", "n", number, "how many of the newest")
	cmd.AddCommand(list)
	one := func(use, short string, do func(c *cobra.Command, s *apiClient, id string) error) {
		cmd.AddCommand(&cobra.Command{Use: use + " TASK", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			s, err := a.api()
			if err != nil {
				return err
			}
			return do(c, s, args[0])
		}})
	}
	one("wait", "Wait until a task ends, and tell its progress", func(c *cobra.Command, s *apiClient, id string) error {
		return s.wait(c, &hanokv1.Task{Id: id})
	})
	one("cancel", "Give a task up; what was handed to the hosts goes on there", func(c *cobra.Command, s *apiClient, id string) error {
		t, err := s.task.GetTask(c.Context(), &hanokv1.GetTaskRequest{Task: id})
		if err != nil {
			return err
		}
		// By its cluster: an operator of that one alone may, too.
		r, err := s.task.CancelTask(c.Context(), &hanokv1.CancelTaskRequest{Task: id, Cluster: t.Task.Cluster})
		if err == nil {
			i18n.Fprintf(c.OutOrStdout(), "task %s: %s\n", id, r.Task.Message)
		}
		return err
	})
	return cmd
}

// newApplyTop is `hanok apply`: the wanted configuration on a server, which may
// not know the cluster yet.
func newApplyTop(a *app) *cobra.Command {
	var file string
	var dryRun, force bool
	cmd := &cobra.Command{Use: "apply -f FILE", Short: "Make a cluster file the wanted configuration (through a server)", Args: cobra.NoArgs,
		Long: "Make a cluster file the wanted configuration of its cluster, which is added if\nthe server does not know it. The file's version must be the newest that the\nserver has (hanok get -o yaml): otherwise somebody else changed it meanwhile."}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the cluster file, - for standard input")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only check it and show its effect; exit status 4 if it would be refused")
	forceFlag(cmd, &force)
	_ = cmd.MarkFlagRequired("file")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		s, check, next, err := a.check(c, file)
		if err != nil {
			return err
		}
		w := c.OutOrStdout()
		printCheck(w, check)
		if dryRun {
			i18n.Fprintf(w, "would become version %d\n", check.NextVersion)
			if x := check.Admission; x.GetRefused() && !force {
				return refusal(fdm.AdminReply{Refused: true, Text: x.Text, Help: x.Help})
			}
			return nil
		}
		expected := next.Version
		if check.CurrentVersion == 0 {
			expected = 0
		}
		b, err := next.Marshal()
		if err != nil {
			return err
		}
		r, err := s.config.ApplyConfig(c.Context(), &hanokv1.ApplyConfigRequest{Cluster: next.Name, Yaml: string(b), ExpectedVersion: expected, Force: force})
		if err != nil {
			return err
		}
		return s.wait(c, r.Task)
	}
	return cmd
}

// check asks the server what a file would mean.
func (a *app) check(c *cobra.Command, file string) (*apiClient, *hanokv1.CheckConfigResponse, *config.Cluster, error) {
	next, err := a.readCluster(file)
	if err != nil {
		return nil, nil, nil, err
	}
	b, err := next.Marshal()
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := a.api()
	if err != nil {
		return nil, nil, nil, err
	}
	r, err := s.config.CheckConfig(c.Context(), &hanokv1.CheckConfigRequest{Yaml: string(b)})
	if err != nil {
		return nil, nil, nil, err
	}
	if r.Errors != nil && len(r.Errors.Errors) > 0 {
		e := r.Errors.Errors[0]
		return nil, nil, nil, Fail(ExitRefused, e.Remedy, "%s: %s", e.Field, e.Text)
	}
	return s, r, next, nil
}

func printCheck(w io.Writer, r *hanokv1.CheckConfigResponse) {
	printChanges(w, r.Changes)
	for _, x := range r.Conflicts {
		i18n.Fprintf(w, "rules %s contradict each other: %s\n", strings.Join(x.Rules, ", "), x.Text)
	}
	if x := r.Admission; x != nil && (!x.Ok || x.Live) {
		i18n.Fprintf(w, "admission control (%s): %s: %s\n", x.Policy, x.Verdict, x.Text)
		for _, h := range x.Help {
			i18n.Fprintf(w, "what would help: %s\n", h)
		}
		for _, m := range x.Warnings {
			i18n.Fprintf(w, "warning: %s\n", m)
		}
	}
	for _, o := range r.Ineffective {
		i18n.Fprintf(w, "note: this version of Hanok does not act on %s\n", o)
	}
}

func newGet(a *app) *cobra.Command {
	var version uint64
	var out string
	cmd := &cobra.Command{Use: "get", Short: "Print the wanted configuration, to be edited and applied (through a server)", Args: cobra.NoArgs}
	cmd.Flags().Uint64Var(&version, "version", 0, "an older version")
	cmd.Flags().StringVarP(&out, "output", "o", "yaml", "output: yaml")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		if out != "yaml" {
			return usage("use -o yaml", "unknown output %q", out)
		}
		s, err := a.api()
		if err != nil {
			return err
		}
		cluster, err := s.clusterName(c.Context())
		if err != nil {
			return err
		}
		r, err := s.config.GetConfig(c.Context(), &hanokv1.GetConfigRequest{Cluster: cluster, Version: version})
		if err != nil {
			return err
		}
		_, err = io.WriteString(c.OutOrStdout(), r.Config.Yaml)
		return err
	}
	return cmd
}

func newWatch(a *app) *cobra.Command {
	var kinds []string
	cmd := &cobra.Command{Use: "watch", Short: "Show changes as they happen, one JSON object a line (through a server)", Args: cobra.NoArgs}
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only cluster, host, vm, datastore or task")
	cmd.RunE = func(c *cobra.Command, _ []string) error {
		s, err := a.api()
		if err != nil {
			return err
		}
		token := ""
		for {
			stream, err := s.inventory.Watch(c.Context(), &hanokv1.WatchRequest{Cluster: s.login.Cluster, Kinds: kinds, ResumeToken: token})
			if err != nil {
				return err
			}
			for stream.Receive() {
				m := stream.Msg()
				if m.ResumeToken != "" {
					token = m.ResumeToken
				}
				if m.GetIdle() != nil {
					continue
				}
				b, err := protojson.Marshal(m)
				if err != nil {
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), string(b))
			}
			err = stream.Err()
			_ = stream.Close()
			switch {
			case c.Context().Err() != nil:
				return nil
			case token == "" || explain(err).Code != ExitUnreachable:
				return err
			}
			select { // the server comes back; nothing is missed
			case <-c.Context().Done():
				return nil
			case <-time.After(time.Second):
			}
		}
	}
	return cmd
}
