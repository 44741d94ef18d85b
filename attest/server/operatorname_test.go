package server

import (
	"strings"
	"testing"
)

func TestNamesOfOperatorsAreBounded(t *testing.T) {
	for name, ok := range map[string]bool{
		"": false, "a": true, "a b": true, "~a!": true, "a\x1fb": false, "a\x7fb": false, "a\u00e4": false, " a": false, "a ": false,
		strings.Repeat("n", maxName): true, strings.Repeat("n", maxName+1): false,
	} {
		if err := checkName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
		if err := CheckCertificateName(name); (err == nil) != ok {
			t.Errorf("%q of a certificate: %v", name, err)
		}
	}
	for _, name := range []string{byService, "oidc:ana", "provisioner: x", ":"} {
		if checkName(name) != nil || CheckCertificateName(name) == nil {
			t.Errorf("%q", name)
		}
	}
}
