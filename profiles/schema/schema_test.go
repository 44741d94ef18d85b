package schema

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/sealift/sealift/profiles"
)

func TestSchemaIsCurrent(t *testing.T) {
	source, err := os.ReadFile("../profile.go")
	if err != nil {
		t.Fatal(err)
	}
	want, err := Generate(source)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, Profile()) {
		t.Error("the Go types, their comments, the rules or the distros say another thing: go generate ./profiles/schema")
	}
}

// compile reads the schema with a validator that is not ours, which holds it
// against the meta-schema of its draft.
func compile(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Profile()))
	if err != nil {
		t.Fatal(err)
	}
	if doc.(map[string]any)["$schema"] != draft {
		t.Fatalf("$schema is %v", doc.(map[string]any)["$schema"])
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	if err := c.AddResource("profile.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("profile.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// validate holds the text of a profile against the schema. An error of the YAML
// reader counts as refused.
func validate(s *jsonschema.Schema, text []byte) error {
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		return err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

func TestEveryProfileHereIsValid(t *testing.T) {
	s := compile(t)
	var files []string
	for _, pattern := range []string{"../*.yaml", "../examples/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if !strings.HasSuffix(f, ".lock.yaml") {
				files = append(files, f)
			}
		}
	}
	if len(files) < 4 {
		t.Fatalf("found only %v", files)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(s, text); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		p, err := profiles.Load(file)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		// Editors complete from the schema only if a file names it.
		rel, ok := strings.CutPrefix(strings.SplitN(string(text), "\n", 2)[0], "# yaml-language-server: $schema=")
		if !ok {
			t.Errorf("%s: the first line does not name the schema", file)
		} else if _, err := os.Stat(filepath.Join(filepath.Dir(file), rel)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		shown, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(s, shown); err != nil {
			t.Errorf("%s with its defaults: %v", file, err)
		}
	}
}

const good = `apiVersion: sealift.dev/v1
kind: Profile
name: shop
version: "7"
kubernetes:
  version: v1.34.4
attest:
  url: https://attest.example:8443
`

func TestBadProfilesAreRefusedBySchemaAndParser(t *testing.T) {
	s := compile(t)
	if err := validate(s, []byte(good)); err != nil {
		t.Fatal(err)
	}
	add := func(text string) string { return good + text }
	swap := func(old, new string) string {
		out := strings.Replace(good, old, new, 1)
		if out == good {
			t.Fatalf("%q is not in the profile", old)
		}
		return out
	}
	for claim, text := range map[string]string{
		"not a mapping":                             "[]\n",
		"unknown field":                             add("kernal: {}\n"),
		"unknown field below":                       add("disk: {solt: 3}\n"),
		"number for a string":                       swap(`"7"`, "7"),
		"string for a number":                       add("disk: {esp: '96'}\n"),
		"fraction for a number":                     add("disk: {esp: 96.5}\n"),
		"string for a boolean":                      add("debug: 'yes'\n"),
		"mapping for a list":                        add("packages: {a: b}\n"),
		"list for a mapping":                        add("disk: [1]\n"),
		"no value":                                  add("disk:\n"),
		"no apiVersion":                             swap("apiVersion: sealift.dev/v1\n", ""),
		"another apiVersion":                        swap("sealift.dev/v1", "sealift.dev/v2"),
		"another kind":                              swap("kind: Profile", "kind: Lock"),
		"no name":                                   swap("name: shop\n", ""),
		"upper-case name":                           swap("shop", "Shop"),
		"long name":                                 swap("shop", strings.Repeat("a", 41)),
		"bad version":                               swap(`"7"`, `"7 beta"`),
		"no version of Kubernetes":                  swap("version: v1.34.4", "distro: kubernetes"),
		"no kubernetes":                             swap("kubernetes:\n  version: v1.34.4\n", ""),
		"no address of the service":                 swap("attest:\n  url: https://attest.example:8443\n", ""),
		"plain http":                                swap("https:", "http:"),
		"path in the address":                       swap(":8443", ":8443/v1"),
		"unknown architecture":                      add("arch: i386\n"),
		"unknown base":                              add("base: maximal\n"),
		"base oci without an image":                 add("base: oci\n"),
		"an image without base oci":                 add("oci: {archive: x.tar}\n"),
		"two images":                                add("base: oci\noci: {archive: x.tar, layout: x}\n"),
		"no image":                                  add("base: oci\noci: {}\n"),
		"image without a digest":                    add("base: oci\noci: {image: 'registry.example/os:v1'}\n"),
		"unknown suite":                             add("debian: {suite: sid}\n"),
		"mirror with credentials":                   add("debian: {mirror: 'http://me:pw@deb.example'}\n"),
		"kernel that is no kernel":                  add("kernel: {package: nginx}\n"),
		"empty string":                              add("kernel: {package: ''}\n"),
		"path as a module":                          add("kernel: {root: [../evil]}\n"),
		"two parameters in one":                     add("kernel: {cmdline: ['quiet init=/bin/sh']}\n"),
		"a parameter of the builder":                add("kernel: {cmdline: [sealift.roothash=00]}\n"),
		"another init":                              add("kernel: {cmdline: [init=/bin/sh]}\n"),
		"package twice":                             add("packages: [nano, nano]\n"),
		"unknown distro":                            swap("version: v1.34.4", "version: v1.34.4\n  distro: k8s"),
		"version of another distro":                 swap("version: v1.34.4", "version: v1.34.4\n  distro: k3s"),
		"version that the distro does not have":     swap("v1.34.4", "v9.99.9"),
		"version without v":                         swap("v1.34.4", "1.34.4"),
		"network without a length":                  swap("version: v1.34.4", "version: v1.34.4\n  podCIDR: 10.88.0.0"),
		"name for an address":                       swap("version: v1.34.4", "version: v1.34.4\n  clusterDNS: dns.example"),
		"short image reference":                     add("preload: {images: [{name: nginx, go: x}]}\n"),
		"image without a name":                      add("preload: {images: [{go: x}]}\n"),
		"image with two sources":                    add("preload: {images: [{name: 'docker.io/a/b:1', go: x, layout: y}]}\n"),
		"manifest without a name":                   add("preload: {manifests: [{source: x.yaml}]}\n"),
		"manifest without content":                  add("preload: {manifests: [{name: x}]}\n"),
		"manifest from outside":                     add("preload: {manifests: [{name: x, source: ../x.yaml}]}\n"),
		"file without a path":                       add("files: [{content: x}]\n"),
		"file without content":                      add("files: [{path: /etc/x}]\n"),
		"file with two contents":                    add("files: [{path: /etc/x, content: a, source: b}]\n"),
		"relative path":                             add("files: [{path: etc/x, content: a}]\n"),
		"path with dots":                            add("files: [{path: /etc/../sbin/x, content: a}]\n"),
		"path that ends in a slash":                 add("files: [{path: /etc/x/, content: a}]\n"),
		"the agent":                                 add("files: [{path: /usr/lib/sealift/agent, content: a}]\n"),
		"init":                                      add("files: [{path: /usr/sbin/init, content: a}]\n"),
		"the accounts":                              add("files: [{path: /etc/passwd, content: a}]\n"),
		"the agent's configuration":                 add("files: [{path: /etc/sealift/agent.json, content: a}]\n"),
		"a mount point":                             add("files: [{path: /var/x, content: a}]\n"),
		"mode with setuid":                          add("files: [{path: /etc/x, content: a, mode: '4755'}]\n"),
		"mode that is a number":                     add("files: [{path: /etc/x, content: a, mode: 644}]\n"),
		"source that is absolute":                   add("files: [{path: /etc/x, source: /etc/shadow}]\n"),
		"user without a number":                     add("users: [{name: till}]\n"),
		"user root":                                 add("users: [{name: root, uid: 1000}]\n"),
		"user with root's number":                   add("users: [{name: till, uid: 0}]\n"),
		"small ESP":                                 add("disk: {esp: 63}\n"),
		"zero written out":                          add("disk: {verity: 0}\n"),
		"negative size":                             add("install: {minDisk: -1}\n"),
		"certificates from outside":                 swap("url:", "ca: ../ca.pem\n  url:"),
		"hardware without a pattern":                add("hardware: [{}]\n"),
		"hardware with an empty pattern":            add("hardware: [{product: ''}]\n"),
		"hardware with a pattern that nothing fits": add("hardware: [{product: '" + strings.Repeat("x", 65) + "'}]\n"),
	} {
		t.Run(claim, func(t *testing.T) {
			if _, err := profiles.Parse("p.yaml", []byte(text)); err == nil {
				t.Errorf("the parser takes\n%s", text)
			}
			if err := validate(s, []byte(text)); err == nil {
				t.Errorf("the schema takes\n%s", text)
			}
		})
	}
}

// TestEveryRuleIsInTheSchema holds that no enum, pattern or bound is lost.
func TestEveryRuleIsInTheSchema(t *testing.T) {
	text := string(Profile())
	for path, r := range profiles.Rules() {
		for _, s := range append([]string{r.Pattern, r.Not}, r.Enum...) {
			quoted, err := encode(s)
			if err != nil {
				t.Fatal(err)
			}
			if s != "" && !strings.Contains(text, string(quoted)) {
				t.Errorf("%s: %s is not in the schema", path, s)
			}
		}
	}
	if n := strings.Count(text, `"type": "object"`); n != strings.Count(text, `"additionalProperties": false`) {
		t.Errorf("of %d objects some are open", n)
	}
}

// FuzzSchemaTakesWhatTheParserTakes holds that an editor never marks what a
// build would accept.
func FuzzSchemaTakesWhatTheParserTakes(f *testing.F) {
	s := compile(f)
	f.Add([]byte(good))
	for _, file := range []string{"../demo.yaml", "../examples/store.yaml", "../examples/oci.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := profiles.Parse("p.yaml", text); err != nil {
			return
		}
		if err := validate(s, bytes.TrimPrefix(text, []byte("\ufeff"))); err != nil {
			t.Errorf("%v:\n%s", err, text)
		}
	})
}
