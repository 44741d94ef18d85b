package main

import (
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sealift/sealift/attest/server"
)

func TestPeopleAreConfigured(t *testing.T) {
	t.Parallel()
	read := func(people string) (*serveConfig, error) {
		t.Helper()
		s := newService(t, `operator: {listen: "127.0.0.1:0", hosts: ["127.0.0.1"], people: [`+people+`]}`)
		return readServeConfig(filepath.Join(s.dir, "serve.yaml"))
	}
	c, err := read(`{name: Ana, certificates: [ana, ana-2], tokens: ["u1"]}, {name: Bo, tokens: ["u2"]}`)
	if err != nil {
		t.Fatal(err)
	}
	want := []server.Person{{Name: "Ana", Certificates: []string{"ana", "ana-2"}, Tokens: []string{"u1"}}, {Name: "Bo", Tokens: []string{"u2"}}}
	if got := c.Operator.people(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if _, err := read(`{name: Ana, certificates: [ana]}, {name: Bo, certificates: [ANA]}`); exitCode(err) != exitUsage || !strings.Contains(err.Error(), `operator.people: certificate of "Bo"`) {
		t.Errorf("a name of two people: %v", err)
	}
}
