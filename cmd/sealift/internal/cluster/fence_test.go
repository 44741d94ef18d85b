package cluster

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestFenceCordonsOrDeletesANode(t *testing.T) {
	f := newFakeAPI(t)
	var got []string
	answer := 200
	f.fail = func(r *http.Request) int { // sees every request
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = append(got, r.Method+" "+r.URL.Path+" "+r.Header.Get("Content-Type"))
		if r.Method == "PATCH" {
			var p struct {
				Spec     map[string]any `json:"spec"`
				Metadata struct {
					Annotations map[string]string `json:"annotations"`
				} `json:"metadata"`
			}
			if err := json.Unmarshal(b, &p); err != nil || len(p.Spec) != 1 || p.Spec["unschedulable"] != true || p.Metadata.Annotations[fenceAnnotation][:4] != "lost" {
				t.Errorf("patch is %s: %v", b, err)
			}
			if len(p.Metadata.Annotations[fenceAnnotation]) > maxAnnotation {
				t.Error("the annotation is not bounded")
			}
		}
		return answer
	}
	for _, c := range []struct {
		delete bool
		want   string
	}{
		{false, "PATCH /api/v1/nodes/box-1 application/merge-patch+json"},
		{true, "DELETE /api/v1/nodes/box-1 "},
	} {
		k, err := New(Config{Kubeconfig: f.kubeconfig(), Log: newLog(t), DeleteNodes: c.delete})
		if err != nil {
			t.Fatal(err)
		}
		for code, fails := range map[int]bool{200: false, 404: false, 403: true, 500: true} {
			got, answer = nil, code
			if err := k.Fence(t.Context(), "box-1", "lost "+strings.Repeat("x", 2000)); (err != nil) != fails {
				t.Errorf("HTTP %d: %v", code, err)
			}
			if len(got) != 1 || got[0] != c.want {
				t.Errorf("requests are %q, want %q", got, c.want)
			}
		}
		if err := k.Fence(t.Context(), "../pods/x", "lost"); err == nil {
			t.Error("a path was taken for a node name")
		}
	}
}
