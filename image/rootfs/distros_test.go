package rootfs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealift/sealift/image/oci"
	"github.com/sealift/sealift/image/tree"
	"github.com/sealift/sealift/profiles"
)

// distroConfig is a configuration with another distro, and inputs for it.
func distroConfig(t *testing.T, name, version string) Config {
	t.Helper()
	content := packages(t)
	d, err := profiles.LoadDistro(name)
	must(t, err)
	for _, m := range d.Content.Modules {
		kernel := content["linux-image-6.1.0-1-cloud-amd64"]
		if !slices.ContainsFunc(keys(kernel), func(f string) bool { return strings.HasSuffix(f, "/"+m+".ko") }) {
			kernel[modDir+"net/"+m+".ko"] = kmod(t)
		}
	}
	c := config(t, content)
	k := &c.Profile.Kubernetes
	k.Distro, k.Version, k.Source = name, version, profiles.SourceRelease
	must(t, c.Profile.Validate())
	v, err := d.Version(version)
	must(t, err)
	programs, err := d.Programs(v, k.Source)
	must(t, err)
	c.Inputs.Programs = map[string]string{}
	for _, p := range programs {
		c.Inputs.Programs[p.Name] = c.Agent
	}
	return c
}

func keys(p pkg) []string {
	var out []string
	for k := range p {
		out = append(out, k)
	}
	return out
}

// preload adds an image of the distro's own list.
func preload(t *testing.T, c Config, name string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image.tar")
	out, err := os.Create(file)
	must(t, err, oci.WriteArchive(out, oci.Image{Name: name, Arch: "amd64", Program: c.Agent, Path: "/x"}), out.Close())
	c.Inputs.Lock.Images = append(c.Inputs.Lock.Images, profiles.LockedImage{Name: name, Distro: true})
	if c.Inputs.Archives == nil {
		c.Inputs.Archives = map[string]string{}
	}
	c.Inputs.Archives[name] = file
}

func TestAnotherDistroIsOneField(t *testing.T) {
	for name, version := range map[string]string{"k3s": "v1.34.1+k3s1", "k0s": "v1.34.1+k0s.1", "rke2": "v1.34.1+rke2r1", "kubernetes": "v1.34.9"} {
		t.Run(name, func(t *testing.T) {
			c := distroConfig(t, name, version)
			d, err := profiles.LoadDistro(name)
			must(t, err)
			if d.Release.Images != nil {
				preload(t, c, "docker.io/rancher/mirrored-pause:3.6")
			}
			_, root := build(t, c)
			raw, err := root.ReadFile(profiles.NodeConfigPath, 1<<20)
			must(t, err)
			var n profiles.NodeConfig
			must(t, json.Unmarshal(raw, &n))
			if n.Distro != name || n.Version != version || n.ImagesDir != d.Node.ImagesDir || n.Join != d.Node.Join {
				t.Errorf("node configuration is %s", raw)
			}
			for _, s := range n.Services {
				if node, _, err := root.Resolve(s.Args[0]); err != nil || node.Mode().Perm() != 0o755 {
					t.Errorf("service %s: %s: %v", s.Name, s.Args[0], err)
				}
			}
			for _, l := range d.Content.Links {
				if node, err := root.Lookup(l.Path); err != nil || node.Target() != l.Target {
					t.Errorf("link %s: %v", l.Path, err)
				}
			}
			for _, f := range d.Content.Files {
				if _, err := root.ReadFile(f.Path, 1<<20); err != nil {
					t.Error(err)
				}
			}
			var images []string
			must(t, root.Walk(func(name string, _ *tree.Node) error {
				if strings.HasPrefix("/"+strings.TrimPrefix(name, "/"), profiles.ImagesDir+"/") {
					images = append(images, filepath.Base(name))
				}
				return nil
			}))
			want := []string{"docker.io__sealift__pause@1.tar", "docker.io__shop__till@v2.tar"}
			if d.Release.Images != nil {
				want[0] = "docker.io__rancher__mirrored-pause@3.6.tar"
			}
			if !slices.Equal(images, want) {
				t.Errorf("images are %v, want %v", images, want)
			}
		})
	}
}

func TestImagesOfTheDistroMustBeAmongTheInputs(t *testing.T) {
	c := distroConfig(t, "k3s", "v1.34.1+k3s1")
	preload(t, c, "docker.io/rancher/mirrored-pause:3.6")
	c.Inputs.Archives = nil
	b, err := New(c)
	must(t, err)
	if _, err := b.Root(t.Context()); err == nil || !strings.Contains(err.Error(), "docker.io/rancher/mirrored-pause:3.6 is not among the inputs") {
		t.Errorf("got %v", err)
	}
}

func TestProgramsOfAReleaseBringTheirLibraries(t *testing.T) {
	c := distroConfig(t, "kubernetes", "v1.34.9")
	kubelet := filepath.Join(t.TempDir(), "kubelet")
	must(t, os.WriteFile(kubelet, dynamic(t, linker, "libm.so.6", "libc.so.6"), 0o755))
	c.Inputs.Programs["kubelet"] = kubelet
	_, root := build(t, c)
	for _, name := range []string{"/usr/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"} {
		if _, _, err := root.Resolve(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, os.WriteFile(kubelet, dynamic(t, linker, "libnone.so.1"), 0o755))
	b, err := New(c)
	must(t, err)
	if _, err := b.Root(t.Context()); err == nil || !strings.Contains(err.Error(), "program kubelet needs libnone.so.1") {
		t.Errorf("a library that no package has: %v", err)
	}
}
