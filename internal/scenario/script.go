package scenario

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"hanok.dev/hanok/internal/config"
	"hanok.dev/hanok/internal/model"
)

// maxProblems bounds how many errors of one script are reported.
const maxProblems = 50

// parseScript reads the steps; before is the number of lines above the script.
func parseScript(c *config.Cluster, script []byte, before int) ([]Step, []error) {
	var steps []Step
	var problems []error
	line := before
	for text := range strings.Lines(string(script)) {
		line++
		words, err := split(text)
		if err == nil && len(words) == 0 {
			continue
		}
		var st Step
		if err == nil {
			st, err = parseStep(c, words)
		}
		if err == nil && len(steps) == MaxSteps {
			return nil, append(problems, fmt.Errorf("line %d: more than %d steps", line, MaxSteps))
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("line %d: %w", line, err))
			if len(problems) == maxProblems {
				return nil, append(problems, fmt.Errorf("and perhaps more"))
			}
			continue
		}
		st.Line = line
		steps = append(steps, st)
	}
	return steps, problems
}

// word is a word of a line; a quoted one may hold spaces and is never a keyword.
type word struct {
	text   string
	quoted bool
}

// split cuts a line into words. "…" holds spaces and #; \" and \\ inside.
func split(line string) ([]word, error) {
	var out []word
	line = strings.TrimRight(line, "\r\n")
	for {
		line = strings.TrimLeft(line, " \t")
		if line == "" || line[0] == '#' {
			return out, nil
		}
		if line[0] == '"' {
			prefix, err := strconv.QuotedPrefix(line)
			if err != nil {
				return nil, fmt.Errorf("a quote is not closed: %s", clip(line))
			}
			text, err := strconv.Unquote(prefix)
			if err != nil {
				return nil, fmt.Errorf("a quoted text is not legal: %s", clip(prefix))
			}
			out, line = append(out, word{text, true}), line[len(prefix):]
			continue
		}
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		out, line = append(out, word{line[:end], false}), line[end:]
	}
}

func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

// verb is one form of a step.
type verb struct {
	usage string
	parse func(a *args) Action
}

// verbs are the forms of steps, by the word that follows the time.
var verbs = map[string]verb{
	"power-off": power(PowerOff), "power-on": power(PowerOn), "reboot": power(Reboot),
	"shutdown": power(Shutdown), "thaw": power(Thaw),
	"freeze":    {"freeze HOST [for DURATION]", parseFreeze},
	"cut":       {"cut HOST [NETWORK] [in|out|both]", parseCut},
	"heal":      {"heal HOST", func(a *args) Action { return Heal{a.host()} }},
	"suspend":   {"suspend HOST for DURATION", parseSuspend},
	"storage":   {"storage HOST DATASTORE none|hang|hang-hard|lost|slow|full|readonly|flaky|cached|unanswered|stale", parseStorage},
	"datastore": {"datastore DATASTORE snapshot|rollback|delete|repair", parseDatastore},
	"stall":     {"stall agent|guard HOST after N for DURATION", parseStall},
	"slow":      {"slow HOST DURATION|off", parseSlow},
	"clock":     {"clock HOST PPM", parseClock},
	"network":   {"network loss|duplicate PERMILLE, network latency DURATION", parseNetwork},
	"partition": {"partition HOST[,HOST…] | HOST[,HOST…] …", parsePartition},
	"kill":      process(Kill), "stop": process(Stop), "cont": process(Cont),
	"vm":     {"vm stop|start|kill|shutdown|crash|hang|delete|restore VM, vm migrate|by-hand VM HOST, vm fail-start VM N, vm set VM FIELD VALUE; start and set may end with force", parseVM},
	"config": {"config FIELD=VALUE [force]", parseConfig},
	"host":   {"host maintenance HOST on|off [force], host stop-vms HOST [force], host resume HOST", parseHost},
	"expect": {"expect VM|all on HOST|not-on HOST|running|down|protected|unprotected|frozen, expect primary HOST, expect host HOST STATE, expect power HOST on|off, expect event \"TEXT\"; then [within DURATION] [because \"TEXT\"]", parseExpect},
}

func verbNames() []string {
	out := make([]string, 0, len(verbs))
	for v := range verbs {
		out = append(out, v)
	}
	slices.Sort(out)
	return out
}

func parseStep(c *config.Cluster, words []word) (Step, error) {
	if words[0].text != "at" || len(words) < 3 {
		return Step{}, fmt.Errorf("a step is `at TIME VERB …`, with one of the verbs %s", strings.Join(verbNames(), ", "))
	}
	at, err := config.ParseDuration(words[1].text)
	if err != nil {
		return Step{}, fmt.Errorf("time %w", err)
	}
	name := words[2].text
	v, ok := verbs[name]
	if !ok {
		return Step{}, unknown("verb", name, verbNames())
	}
	a := &args{cluster: c, words: words[3:], usage: v.usage}
	action := v.parse(a)
	if a.err == nil && len(a.words) > 0 {
		a.fail("%q is too much", clip(a.words[0].text))
	}
	if a.err != nil {
		return Step{}, a.err
	}
	texts := make([]string, 0, len(words)-2)
	for _, w := range words[2:] {
		if w.quoted {
			w.text = strconv.Quote(w.text)
		}
		texts = append(texts, w.text)
	}
	return Step{At: at, Text: strings.Join(texts, " "), Action: action}, nil
}

func unknown(what, name string, known []string) error {
	hint := config.Suggest(name, known)
	if hint == "" {
		return fmt.Errorf("unknown %s %q", what, clip(name))
	}
	return fmt.Errorf("unknown %s %q; %s", what, clip(name), hint)
}

// args hands out the words of a step; after the first error it hands out
// nothing more.
type args struct {
	cluster *config.Cluster
	words   []word
	usage   string
	err     error
}

func (a *args) fail(format string, v ...any) {
	if a.err == nil {
		a.err = fmt.Errorf(format+"; the form is: %s", append(v, a.usage)...)
	}
}

func (a *args) next(what string) string {
	if a.err != nil {
		return ""
	}
	if len(a.words) == 0 {
		a.fail("%s is missing", what)
		return ""
	}
	w := a.words[0]
	a.words = a.words[1:]
	return w.text
}

// peek is the next word if it is not quoted.
func (a *args) peek() string {
	if a.err != nil || len(a.words) == 0 || a.words[0].quoted {
		return ""
	}
	return a.words[0].text
}

func (a *args) known(what, name string, names []string) {
	if a.err == nil && !slices.Contains(names, name) {
		a.err = unknown(what, name, names)
	}
}

func (a *args) host() model.HostID { return a.hostNamed(a.next("the host")) }

func (a *args) hostNamed(name string) model.HostID {
	if a.err == nil && a.cluster.HostByName(model.HostID(name)) == nil {
		names := make([]string, len(a.cluster.Hosts))
		for i, h := range a.cluster.Hosts {
			names[i] = string(h.Name)
		}
		a.known("host", name, names)
	}
	return model.HostID(name)
}

func (a *args) vm() string {
	name := a.next("the VM")
	if a.err == nil && a.cluster.VMByName(name) == nil {
		names := make([]string, len(a.cluster.VMs))
		for i := range a.cluster.VMs {
			names[i] = a.cluster.VMs[i].Name
		}
		a.known("VM", name, names)
	}
	return name
}

func (a *args) oneOf(what string, choices ...string) string {
	w := a.next(what)
	a.known(strings.TrimPrefix(what, "the "), w, choices)
	return w
}

func (a *args) duration(what string) time.Duration {
	s := a.next(what)
	if a.err != nil {
		return 0
	}
	d, err := config.ParseDuration(s)
	if err != nil {
		a.fail("%s %v", what, err)
	}
	return d
}
