package cli

import (
	"os"
	"strings"
)

// korean reports whether people's messages are Korean: by the first of the
// locale's variables that is set.
func korean() bool {
	for _, v := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		if s := os.Getenv(v); s != "" {
			return strings.HasPrefix(s, "ko")
		}
	}
	return false
}

// tr is a heading or a fixed sentence in the language of the locale. What is not
// in the table stays English; states and field names always do, because they are
// those of the cluster file and of JSON.
func tr(s string) string {
	if !korean() {
		return s
	}
	if k, ok := inKorean[s]; ok {
		return k
	}
	return s
}

var inKorean = map[string]string{
	"HOST": "호스트", "ROLE": "역할", "STATE": "상태", "ARMED": "감시장치", "HOOK": "훅", "GUARD": "가드", "LEASES": "임대", "MEMORY USED": "사용 메모리",
	"DATASTORE": "데이터스토어", "LIST OWNER": "목록 소유자", "TERM": "임기", "VMS": "VM 수", "LEASE HERE": "이 호스트의 임대", "PROBLEM": "문제",
	"PROTECTED": "보호", "GUEST": "게스트", "REASON": "이유", "CLUSTER": "클러스터", "PRIMARY": "프라이머리", "VERSION": "버전", "WANTED": "원하는 버전",
	"HOSTS": "호스트 수", "DRIFT": "차이", "TASK": "작업", "KIND": "종류", "TARGET": "대상", "DONE": "진행", "BY": "요청자", "CREATED": "생성", "MESSAGE": "메시지",
	"NODE": "노드", "SERVICE": "서비스", "TYPE": "유형", "NAME": "이름", "MAX RESTART": "최대 재시작", "MAX RELOCATE": "최대 재배치", "FAILBACK": "페일백",
	"RULE": "규칙", "RESOURCES": "리소스", "NODES": "노드", "HOW": "방식", "CONFLICT": "충돌", "FENCE": "펜스", "PATH": "경로",
	"FAILOVER": "페일오버", "BEGAN": "시작", "RUNNING": "실행", "TRIES": "시도", "OUTCOME": "결과", "FROM": "이전", "TO": "이후",
	"OPTION": "옵션", "DEFAULT": "기본값", "SET": "설정", "ACTS": "동작", "MEANING": "의미",
	"Nothing is wrong.": "문제가 없습니다.", "what to do:": "조치:",
	"No VM is protected yet: hanok vm protect NAME": "아직 보호되는 VM이 없습니다: hanok vm protect NAME",
}
