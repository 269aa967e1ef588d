// One program that is etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kubectl, chosen by the name it
// is called by (symbolic links) or by its first argument. Linking them together shares their 120 MB of common code, so
// that one build and one file give the tests a real control plane without downloads.
//
// With PODYARD_PARENT_PID=<pid> the program ends when that process, its parent, is gone: a killed test leaves nothing.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	_ "time/tzdata"

	"go.etcd.io/etcd/server/v3/etcdmain"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

const parentVariable = "PODYARD_PARENT_PID"

var components = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          func() { os.Exit(cli.Run(apiserver.NewAPIServerCommand())) },
	"kube-controller-manager": func() { os.Exit(cli.Run(controllermanager.NewControllerManagerCommand())) },
	"kube-scheduler":          func() { os.Exit(cli.Run(scheduler.NewSchedulerCommand())) },
	"kubectl":                 runKubectl,
}

func main() {
	run, known := components[filepath.Base(os.Args[0])]
	if !known && len(os.Args) > 1 {
		if run, known = components[os.Args[1]]; known {
			os.Args = os.Args[1:]
		}
	}
	if !known {
		fmt.Fprintln(os.Stderr, "usage: podyard-control-plane etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubectl [flags]")
		os.Exit(2)
	}
	if err := followParent(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	run()
}

// followParent arranges that this process does not outlive the one named in the environment.
func followParent() error {
	value := os.Getenv(parentVariable)
	if value == "" {
		return nil
	}
	parent, err := strconv.Atoi(value)
	if err != nil {
		return fmt.Errorf("%s=%q is not a process id", parentVariable, value)
	}
	// kubectl may start helpers (credential plugins, editors), which must not inherit it.
	if err := os.Unsetenv(parentVariable); err != nil {
		return err
	}
	return endWithParent(parent)
}

func runKubectl() {
	// As in kubectl itself: the verbosity is wanted before flags are parsed.
	if _, err := logs.GlogSetter(kubectl.GetLogVerbosity(os.Args)); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
}
