{{- define "name" -}}
istiod{{ if .Values.revision }}-{{ .Values.revision }}{{ end }}
{{- end -}}

{{- define "suffix" -}}
{{ if .Values.revision }}-{{ .Values.revision }}{{ end }}
{{- end -}}

{{- define "revision" -}}
{{ .Values.revision | default "default" }}
{{- end -}}

{{- define "labels" -}}
app: istiod
istio.io/rev: {{ include "revision" . | quote }}
release: {{ .Release.Name }}
app.kubernetes.io/name: istiod
app.kubernetes.io/part-of: istio
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "selector" -}}
app: istiod
istio.io/rev: {{ include "revision" . | quote }}
{{- end -}}

{{- define "image" -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "injector" -}}
clientConfig:
  {{- if .Values.istiodRemote.injectionURL }}
  url: {{ .Values.istiodRemote.injectionURL | quote }}
  {{- else }}
  service:
    name: {{ include "name" . }}
    namespace: {{ .Release.Namespace }}
    path: /inject
    port: 443
  {{- end }}
sideEffects: None
rules:
  - operations: [CREATE]
    apiGroups: [""]
    apiVersions: [v1]
    resources: [pods]
failurePolicy: Fail
reinvocationPolicy: {{ .Values.sidecarInjectorWebhook.reinvocationPolicy }}
admissionReviewVersions: [v1]
{{- end -}}

{{- /* The four ways in which pods ask for a revision or a tag; a list of the root and the name asked for. */ -}}
{{- define "webhooks" -}}
{{- $root := index . 0 }}
{{- $name := index . 1 }}
- name: rev.namespace.sidecar-injector.istio.io
  {{- include "injector" $root | nindent 2 }}
  namespaceSelector:
    matchExpressions:
      - {key: istio.io/rev, operator: In, values: [{{ $name | quote }}]}
      - {key: istio-injection, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
      - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
- name: rev.object.sidecar-injector.istio.io
  {{- include "injector" $root | nindent 2 }}
  namespaceSelector:
    matchExpressions:
      - {key: istio.io/rev, operator: DoesNotExist}
      - {key: istio-injection, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
      - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
      - {key: istio.io/rev, operator: In, values: [{{ $name | quote }}]}
{{- if eq $name "default" }}
- name: namespace.sidecar-injector.istio.io
  {{- include "injector" $root | nindent 2 }}
  namespaceSelector:
    matchExpressions:
      - {key: istio-injection, operator: In, values: [enabled]}
  objectSelector:
    matchExpressions:
      - {key: sidecar.istio.io/inject, operator: NotIn, values: ["false"]}
- name: object.sidecar-injector.istio.io
  {{- include "injector" $root | nindent 2 }}
  namespaceSelector:
    matchExpressions:
      - {key: istio-injection, operator: DoesNotExist}
      - {key: istio.io/rev, operator: DoesNotExist}
  objectSelector:
    matchExpressions:
      - {key: sidecar.istio.io/inject, operator: In, values: ["true"]}
      - {key: istio.io/rev, operator: DoesNotExist}
{{- if $root.Values.sidecarInjectorWebhook.enableNamespacesByDefault }}
- name: auto.sidecar-injector.istio.io
  {{- include "injector" $root | nindent 2 }}
  namespaceSelector:
    matchExpressions:
      - {key: istio-injection, operator: DoesNotExist}
      - {key: istio.io/rev, operator: DoesNotExist}
      - {key: kubernetes.io/metadata.name, operator: NotIn, values: [kube-system, kube-public, kube-node-lease, local-path-storage]}
  objectSelector:
    matchExpressions:
      - {key: sidecar.istio.io/inject, operator: DoesNotExist}
      - {key: istio.io/rev, operator: DoesNotExist}
{{- end }}
{{- end }}
{{- end -}}
