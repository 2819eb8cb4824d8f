package i18n

import (
	"sort"
	"strings"
	"testing"
)

func TestTextsOfEvents(t *testing.T) {
	for in, want := range map[string]string{
		"host2 is primary":            "host2: 프라이머리가 됨",
		"web is to start on host3":    "web: host3에서 시작할 예정",
		"Nothing is wrong.":           "문제가 없습니다.",
		"host1":                       "host1",
		"never written by this house": "never written by this house",
		"web is not running yet: no host can take it: host1: it is in maintenance; it is tried again when anything changes": "web: 아직 실행되지 않음: 받을 수 있는 호스트가 없음: host1: 유지보수 모드임; 무엇이든 바뀌면 다시 시도함",
		"  hosts: a map where a list is expected; write a list such as [a, b]":                                              "  hosts: 목록 자리에 a map; [a, b] 같은 목록을 쓰십시오",
	} {
		if got := Korean.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
		if got := English.Text(in); got != in {
			t.Errorf("English.Text(%q) = %q", in, got)
		}
	}
}

func TestSprintfKeepsLineBreaksAndTranslatesValues(t *testing.T) {
	if got, want := Korean.Sprintf("\n%s and %d more\n", "HA is off", 3), "\nHA 꺼짐 외 3개\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFromEnvironment(t *testing.T) {
	for _, c := range []struct {
		all, messages, lang string
		want                Language
	}{
		{"", "", "ko_KR.UTF-8", Korean}, {"", "", "ko", Korean}, {"C", "", "ko_KR.UTF-8", English}, {"", "ko_KR.UTF-8", "en_US.UTF-8", Korean},
		{"", "", "", English}, {"", "", "kok_IN.UTF-8", English},
	} {
		t.Setenv("LC_ALL", c.all)
		t.Setenv("LC_MESSAGES", c.messages)
		t.Setenv("LANG", c.lang)
		if got := FromEnvironment(); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// Every translation has the values of its English text, each once.
func TestTranslationsKeepTheirValues(t *testing.T) {
	for english, known := range korean().exact {
		if a, b := verbs(english), verbs(known); strings.Join(a, " ") != strings.Join(b, " ") {
			t.Errorf("%q has values %v, its translation %q %v", english, a, known, b)
		}
		if len(english) > 0 && len(known) == 0 {
			t.Errorf("%q has an empty translation", english)
		}
	}
}

// verbs are the values of a format by place and kind; %q, %v, %w and %s are all texts.
func verbs(format string) []string {
	var out []string
	next := 1
	for _, m := range verb.FindAllStringSubmatch(format, -1) {
		if m[2] == "%" {
			continue
		}
		at, kind := m[1], m[2]
		if at == "" {
			at = string(rune('0' + next))
		}
		next = int(at[0]-'0') + 1
		if strings.Contains("qvw", kind) {
			kind = "s"
		}
		out = append(out, at+kind)
	}
	sort.Strings(out)
	return out
}
