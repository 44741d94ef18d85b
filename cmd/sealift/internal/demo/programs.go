package demo

import (
	"context"
	"fmt"
	"os"

	"github.com/sealift/sealift/image/inputs"
	"github.com/sealift/sealift/profiles"
)

// buildCluster builds the control plane from the same modules as the image's
// kubelet, or takes it from the cache.
func (d *Demo) buildCluster(ctx context.Context) (string, error) {
	profile, err := profiles.Load(d.Profile)
	if err != nil {
		return "", err
	}
	lock, err := profiles.LoadLock(profiles.LockPath(d.Profile))
	if err != nil {
		return "", err
	}
	distro, err := profiles.LoadDistro(profile.Kubernetes.Distro)
	if err != nil {
		return "", err
	}
	version, err := distro.Version(profile.Kubernetes.Version)
	if err != nil {
		return "", err
	}
	step := d.Log.Step("building upstream Kubernetes " + version.Version)
	built := int64(0)
	f := &inputs.Fetcher{Cache: inputs.Cache{Dir: d.Cache}, Profile: d.Profile}
	d.programs = map[string]string{}
	if err := os.MkdirAll(d.path("bin"), 0o755); err != nil {
		return "", err
	}
	names := []string{"etcd", "kube-apiserver", "kube-controller-manager", "kubectl"}
	for _, name := range names {
		step.Update(built, int64(len(names)))
		files, err := f.GoBuild(ctx, lock, distro, version, name)
		if err != nil {
			step.Fail(err)
			return "", err
		}
		// Files in the cache are data, not programs.
		if err := inputs.InstallPrograms(d.path("bin"), files); err != nil {
			return "", err
		}
		d.programs[name] = d.path("bin", name)
		built++
	}
	step.Done("")
	return fmt.Sprintf("etcd and %s, from Go modules", version.Version), nil
}
