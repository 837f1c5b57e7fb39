/*
 * introspection.c - answers org.varlink.service.GetInfo and GetInterfaceDescription
 *
 * SPDX-License-Identifier: ISC
 *
 * The description of io.cbshm is the shipped file io.cbshm.varlink, compiled in.
 */
#include <config.h>

#include <string.h>

#include "agent/interface.h"
#include "agent/introspection.h"

static const char service_description[] =
	"# The Varlink Service Interface is provided by every varlink service. It\n"
	"# describes the service and the interfaces it implements.\n"
	"interface org.varlink.service\n"
	"\n"
	"# Get a list of all the interfaces a service provides and information\n"
	"# about the implementation.\n"
	"method GetInfo() -> (\n"
	"  vendor: string,\n"
	"  product: string,\n"
	"  version: string,\n"
	"  url: string,\n"
	"  interfaces: []string\n"
	")\n"
	"\n"
	"# Get the description of an interface that is implemented by this service.\n"
	"method GetInterfaceDescription(interface: string) -> (description: string)\n"
	"\n"
	"# The requested interface was not found.\n"
	"error InterfaceNotFound (interface: string)\n"
	"\n"
	"# The requested method was not found\n"
	"error MethodNotFound (method: string)\n"
	"\n"
	"# The interface defines the requested method, but the service does not\n"
	"# implement it.\n"
	"error MethodNotImplemented (method: string)\n"
	"\n"
	"# One of the passed parameters is invalid.\n"
	"error InvalidParameter (parameter: string)\n"
	"\n"
	"# Client is denied access\n"
	"error PermissionDenied ()\n"
	"\n"
	"# Method is expected to be called with 'more' set to true, but wasn't\n"
	"error ExpectedMore ()\n";

static const struct {
	const char *name;
	const char *description;
} interfaces[] = {
	{"org.varlink.service", service_description},
	{"io.cbshm", interface_description},
};

#define INTERFACES (sizeof(interfaces) / sizeof(*interfaces))

static cJSON *interface_names(void)
{
	const char *names[INTERFACES];

	for (size_t i = 0; i < INTERFACES; i++)
		names[i] = interfaces[i].name;
	return cJSON_CreateStringArray(names, INTERFACES);
}

cJSON *introspection_info(const cJSON *parameters, struct fault *fault)
{
	cJSON *info, *names;

	if (parameters != NULL && parameters->child != NULL) {
		fault_set(fault, REPLY_INVALID_PARAMETER, parameters->child->string, "%s", "");
		return NULL;
	}
	info = cJSON_CreateObject();
	names = interface_names();
	if (cJSON_AddStringToObject(info, "vendor", "cbshm") != NULL &&
	    cJSON_AddStringToObject(info, "product", "cbagent") != NULL &&
	    cJSON_AddStringToObject(info, "version", PACKAGE_VERSION) != NULL &&
	    cJSON_AddStringToObject(info, "url", "") != NULL &&
	    cJSON_AddItemToObject(info, "interfaces", names))
		return info;
	cJSON_Delete(names);
	cJSON_Delete(info);
	return NULL;
}

cJSON *introspection_description(const cJSON *parameters, struct fault *fault)
{
	const cJSON *wanted = parameters != NULL ? parameters->child : NULL;
	cJSON *reply;

	if (wanted == NULL || strcmp(wanted->string, "interface") != 0 || !cJSON_IsString(wanted) ||
	    wanted->next != NULL) {
		const cJSON *wrong = wanted != NULL && wanted->next != NULL ? wanted->next : wanted;

		fault_set(fault, REPLY_INVALID_PARAMETER,
			  wrong != NULL ? wrong->string : "interface", "%s", "");
		return NULL;
	}
	for (size_t i = 0; i < INTERFACES; i++) {
		if (strcmp(interfaces[i].name, wanted->valuestring) != 0)
			continue;
		reply = cJSON_CreateObject();
		if (cJSON_AddStringToObject(reply, "description", interfaces[i].description))
			return reply;
		cJSON_Delete(reply);
		return NULL;
	}
	fault_set(fault, REPLY_INTERFACE_NOT_FOUND, wanted->valuestring, "%s", "");
	return NULL;
}
