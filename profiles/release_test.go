package profiles

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/goccy/go-yaml"
)

func TestReleaseAddressesAreTheVendors(t *testing.T) {
	tests := []struct {
		distro, version, arch, mirror string
		want                          []string // artifact, its checksums, image list
	}{
		{"kubernetes", "v1.34.4", "amd64", "", []string{
			"https://dl.k8s.io/release/v1.34.4/bin/linux/amd64/kubelet",
			"https://dl.k8s.io/release/v1.34.4/bin/linux/amd64/kubelet.sha256"}},
		{"k3s", "v1.34.1+k3s1", "amd64", "", []string{
			"https://github.com/k3s-io/k3s/releases/download/v1.34.1%2Bk3s1/k3s",
			"https://github.com/k3s-io/k3s/releases/download/v1.34.1%2Bk3s1/sha256sum-amd64.txt",
			"https://github.com/k3s-io/k3s/releases/download/v1.34.1%2Bk3s1/k3s-images.txt"}},
		{"k3s", "v1.33.5+k3s2", "arm64", "https://mirror.example/gh", []string{
			"https://mirror.example/gh/k3s-io/k3s/releases/download/v1.33.5%2Bk3s2/k3s-arm64",
			"https://mirror.example/gh/k3s-io/k3s/releases/download/v1.33.5%2Bk3s2/sha256sum-arm64.txt",
			"https://mirror.example/gh/k3s-io/k3s/releases/download/v1.33.5%2Bk3s2/k3s-images.txt"}},
		{"k0s", "v1.34.1+k0s.1", "amd64", "", []string{
			"https://github.com/k0sproject/k0s/releases/download/v1.34.1%2Bk0s.1/k0s-v1.34.1+k0s.1-amd64",
			"https://github.com/k0sproject/k0s/releases/download/v1.34.1%2Bk0s.1/sha256sums.txt",
			"https://github.com/k0sproject/k0s/releases/download/v1.34.1%2Bk0s.1/airgap-images-list.txt"}},
		{"rke2", "v1.34.1+rke2r1", "arm64", "", []string{
			"https://github.com/rancher/rke2/releases/download/v1.34.1%2Brke2r1/rke2.linux-arm64.tar.gz",
			"https://github.com/rancher/rke2/releases/download/v1.34.1%2Brke2r1/sha256sum-arm64.txt",
			"https://github.com/rancher/rke2/releases/download/v1.34.1%2Brke2r1/rke2-images.linux-arm64.txt"}},
	}
	for _, tc := range tests {
		d, err := LoadDistro(tc.distro)
		if err != nil {
			t.Fatal(err)
		}
		files := []string{d.Release.Artifacts[0].File, d.Release.Artifacts[0].Checksums}
		if d.Release.Images != nil {
			files = append(files, d.Release.Images.File)
		}
		var got []string
		for _, f := range files {
			u, err := d.Release.FileURL(f, tc.version, tc.arch, tc.mirror)
			if err != nil {
				t.Error(err)
			}
			got = append(got, u)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s %s: got\n%s\nwant\n%s", tc.distro, tc.version, strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
		}
	}
}

func TestChannelsAreTheVendors(t *testing.T) {
	for name, want := range map[string]string{
		"kubernetes": "https://dl.k8s.io/release/stable-1.34.txt",
		"k3s":        "https://update.k3s.io/v1-release/channels",
		"rke2":       "https://update.rke2.io/v1-release/channels",
		"k0s":        "https://api.github.com/repos/k0sproject/k0s/releases?per_page=100",
	} {
		d, err := LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Release.Expand(d.Release.Channel.URL, d.Versions[0].Version, "amd64"); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
		}
	}
}

func TestReleasesKnowTheirOwnVersionsOnly(t *testing.T) {
	for name, versions := range map[string][]string{
		"kubernetes": {"v1.34.4", "v1.34.11"}, "k3s": {"v1.34.1+k3s1", "v1.33.5+k3s2"},
		"k0s": {"v1.34.1+k0s.1"}, "rke2": {"v1.34.1+rke2r1"},
	} {
		d, err := LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range versions {
			if got, err := d.Version(v); err != nil || got.Version != v {
				t.Errorf("%s %s: %v", name, v, err)
			}
		}
		for _, v := range []string{"", "1.34.4", "v1.34", "v1.34.4-rc.1", "v1.34.1+other1", "v1.34.1+k3s1/../x", "v1.34.1+k3s1\n"} {
			if _, err := d.Version(v); err == nil {
				t.Errorf("%s has a version %q", name, v)
			}
			if _, err := d.Release.Expand(d.Release.URL, v, "amd64"); err == nil {
				t.Errorf("%s: an address of version %q was made", name, v)
			}
		}
	}
	d, err := LoadDistro("k3s")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Release.Expand("${SUFFIX}", "v1.34.1+k3s1", "riscv64"); err == nil {
		t.Error("an artifact for riscv64 has an address")
	}
	if _, err := d.Release.Expand("${NOTHING}", "v1.34.1+k3s1", "amd64"); err == nil {
		t.Error("an unknown variable was expanded")
	}
}

// documented are the flags of each distro's node command, from its command
// line reference: docs.k3s.io/cli/agent, docs.rke2.io/reference/linux_agent_config,
// docs.k0sproject.io/stable/cli/k0s_worker, kubelet(1).
func documented() map[string]struct {
	command string
	flags   []string
} {
	type node = struct {
		command string
		flags   []string
	}
	rancher := []string{
		"config", "debug", "v", "token", "token-file", "server", "data-dir", "node-name", "with-node-id", "node-label", "node-taint",
		"selinux", "lb-server-port", "protect-kernel-defaults", "container-runtime-endpoint", "snapshotter", "private-registry",
		"node-ip", "node-external-ip", "resolv-conf", "kubelet-arg", "kube-proxy-arg",
	}
	return map[string]node{
		"k3s":  {"agent", append([]string{"pause-image", "flannel-iface", "flannel-conf", "prefer-bundled-bin"}, rancher...)},
		"rke2": {"agent", append([]string{"profile", "runtime-image", "kube-proxy-image", "cloud-provider-name"}, rancher...)},
		"k0s": {"worker", []string{
			"cri-socket", "data-dir", "debug", "enable-cloud-provider", "ignore-pre-flight-checks", "iptables-mode", "kubelet-extra-args",
			"kubelet-root-dir", "labels", "logging", "profile", "status-socket", "taints", "token-file", "verbose"}},
		"kubernetes": {"", []string{"config", "bootstrap-kubeconfig", "kubeconfig", "cert-dir", "root-dir", "node-ip", "hostname-override", "v"}},
	}
}

func TestServicesUseDocumentedFlags(t *testing.T) {
	docs := documented()
	for _, name := range Distros() {
		d, err := LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		doc, ok := docs[name]
		if !ok {
			t.Errorf("distro %s: no reference of its flags in this test", name)
			continue
		}
		s := d.Node.Services[len(d.Node.Services)-1]
		args := s.Args[1:]
		if doc.command != "" {
			if args[0] != doc.command {
				t.Errorf("distro %s runs %q, want %q", name, args[0], doc.command)
			}
			args = args[1:]
		}
		for _, a := range args {
			flag, _, _ := strings.Cut(strings.TrimPrefix(a, "--"), "=")
			if !strings.HasPrefix(a, "--") || !slices.Contains(doc.flags, flag) {
				t.Errorf("distro %s: %q is no documented flag of %s %s", name, a, name, doc.command)
			}
		}
		for _, a := range strings.Fields(strings.Join(args, " ")) {
			if f, ok := strings.CutPrefix(a, "--kubelet-extra-args=--"); ok && !slices.Contains(docs["kubernetes"].flags, strings.SplitN(f, "=", 2)[0]) {
				t.Errorf("distro %s: kubelet has no flag --%s", name, f)
			}
		}
	}
}

func TestRKE2ConfigurationHasDocumentedKeys(t *testing.T) {
	d, err := LoadDistro("rke2")
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.Template("config.yaml.in")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := template.Must(template.New("").Parse(string(text))).Execute(&out, TemplateData{Node: d.Node}); err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(out.Bytes(), &config); err != nil {
		t.Fatal(err)
	}
	for key := range config {
		if !slices.Contains(documented()["rke2"].flags, key) {
			t.Errorf("%s is no flag of rke2 agent, and so no key of its configuration", key)
		}
	}
	if config["token-file"] != d.Node.Join.Bootstrap {
		t.Errorf("token-file is %v, the agent leaves the token in %s", config["token-file"], d.Node.Join.Bootstrap)
	}
}

// tree is what the image of a distro holds, by what its description says.
type tree struct {
	files, dirs, writable []string
	links                 map[string]string
}

func treeOf(t *testing.T, d *Distro, source string) tree {
	t.Helper()
	b, err := LoadBase("minimal")
	if err != nil {
		t.Fatal(err)
	}
	out := tree{links: map[string]string{}, writable: append(slices.Clone(d.Node.Dirs), d.Node.Volatile...)}
	for _, c := range []Content{b.Content, d.Content} {
		for _, p := range c.Packages {
			out.files = append(out.files, p.Files...)
		}
		for _, f := range c.Files {
			out.files = append(out.files, f.Path)
		}
		for _, dir := range c.Dirs {
			out.dirs = append(out.dirs, dir.Path)
		}
		for _, l := range c.Links {
			out.links[l.Path] = l.Target
		}
	}
	programs, err := d.Programs(&d.Versions[0], source)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		out.files = append(out.files, p.Path)
	}
	return out
}

// below reports whether a path is in a directory that the agent makes, or one
// that it makes on the way to another.
func (tr tree) below(p string) bool {
	return slices.ContainsFunc(tr.writable, func(dir string) bool {
		return strings.HasPrefix(p+"/", dir+"/") || strings.HasPrefix(dir+"/", path.Dir(p)+"/")
	})
}

func TestServicesFindTheirFilesAndCanWriteTheirs(t *testing.T) {
	for _, name := range Distros() {
		d, err := LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, source := range d.Sources(&d.Versions[0]) {
			tr := treeOf(t, d, source)
			for _, s := range d.Node.Services {
				if !slices.Contains(tr.files, s.Args[0]) {
					t.Errorf("%s from %s: service %s runs %s, which is not in the image", name, source, s.Name, s.Args[0])
				}
				for _, a := range s.Args[1:] {
					_, value, _ := strings.Cut(a, "=")
					if i := strings.LastIndexByte(value, '='); i >= 0 { // volume-plugin-dir=/x
						value = value[i+1:]
					}
					switch {
					case !path.IsAbs(value) || value == "/run/resolv.conf":
					case strings.HasPrefix(value, "/var/") || strings.HasPrefix(value, "/run/"):
						if !tr.below(value) {
							t.Errorf("%s: service %s writes to %s, which no directory of the node holds", name, s.Name, value)
						}
					case value == d.Node.Manifests:
						if !slices.Contains(tr.dirs, value) {
							t.Errorf("%s: service %s looks for static pods in %s, which is not in every image", name, s.Name, value)
						}
					case !slices.Contains(tr.files, value):
						t.Errorf("%s: service %s reads %s, which is not in the image", name, s.Name, value)
					}
				}
			}
			for _, p := range append(slices.Clone(d.Node.Prefetch), d.Node.Import[:min(1, len(d.Node.Import))]...) {
				if !slices.Contains(tr.files, p) {
					t.Errorf("%s from %s: program %s is not in the image", name, source, p)
				}
			}
			for link, target := range tr.links {
				if strings.HasPrefix(target, "/var/") && !tr.below(target) {
					t.Errorf("%s: link %s leads to %s, which no directory of the node holds", name, link, target)
				}
			}
			j := d.Node.Join
			for _, p := range []string{j.CA, j.Bootstrap, j.Kubeconfig, j.Server} {
				if p != "" && !strings.HasPrefix(p, "/var/lib/") && !tr.below(p) {
					t.Errorf("%s: join path %s is in no directory of the node", name, p)
				}
			}
		}
	}
}

func TestJoinFilesAreWhatTheServicesRead(t *testing.T) {
	for _, name := range Distros() {
		d, err := LoadDistro(name)
		if err != nil {
			t.Fatal(err)
		}
		j := d.Node.Join
		if !slices.Contains(JoinFormats(), j.Format) {
			t.Errorf("%s: join format %q is not known", name, j.Format)
		}
		s := d.Node.Services[len(d.Node.Services)-1]
		args := strings.Join(s.Args, " ")
		for _, c := range d.Content.Files {
			if text, err := d.Template(c.Template); err == nil && strings.Contains(args, c.Path) {
				args += strings.ReplaceAll(string(text), "{{.Node.Join.Bootstrap}}", j.Bootstrap)
			}
		}
		if !strings.Contains(args, j.Bootstrap) {
			t.Errorf("%s: nothing reads the token in %s", name, j.Bootstrap)
		}
		if (d.Node.ImagesDir == "") == (len(d.Node.Import) == 0) {
			t.Errorf("%s: exactly one of imagesDir and import must say how images get in", name)
		}
		if d.PauseImage == "" && (d.Release == nil || d.Release.Images == nil) {
			t.Errorf("%s has neither a sandbox image nor a list of images", name)
		}
	}
}

func TestExcludedImagesMatchWholeReferences(t *testing.T) {
	p := Preload{Exclude: []string{"*traefik*", "docker.io/rancher/klipper-lb:v0.4.13"}}
	for name, want := range map[string]bool{
		"docker.io/rancher/mirrored-library-traefik:3.3": true,
		"docker.io/rancher/klipper-lb:v0.4.13":           true,
		"docker.io/rancher/klipper-lb:v0x4x13":           false,
		"docker.io/rancher/mirrored-pause:3.6":           false,
	} {
		if got := p.Excluded(name); got != want {
			t.Errorf("%s: excluded is %t, want %t", name, got, want)
		}
	}
}
